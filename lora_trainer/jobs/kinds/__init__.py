"""What each kind of job does. The table names these modules; they are imported when a job of the kind is queued."""
