"""The one error that is shown to the person as it is."""


class UserError(Exception):
    """Bad input, said in one sentence: what is wrong, where, and what would be allowed."""
