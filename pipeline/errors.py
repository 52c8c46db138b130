"""The one exception whose text is meant for the user."""


class UserError(Exception):
    """Something the user can mend. Its text is the whole message: what happened, to which file or run, what to do."""
