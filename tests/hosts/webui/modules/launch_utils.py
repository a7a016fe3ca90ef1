"""What the WebUI calls itself."""


def git_tag() -> str:
    return "v0.0.1"
