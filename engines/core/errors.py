"""The project's errors: every failure that a user can mend is a `QwenImageError` whose text says how."""


class QwenImageError(Exception):
    """Base of every error raised on purpose. The text is one line: what was found, what was expected, what to do."""


class OutOfDeviceMemory(QwenImageError):
    """A GPU's memory does not suffice; freeing other engines may mend it."""


class UsageError(QwenImageError):
    """A request that can never be carried out as asked (a size, a step count, an unknown option): exit code 2."""
