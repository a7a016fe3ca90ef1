"""The page: one file for each part, built from the services. The only room that imports gradio."""
