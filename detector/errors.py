"""Errors a user can cause and mend."""

import errno
import os
import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """One line that names the parameter or file at fault and says what to do."""


def exit_on_user_error(main: Callable[[], None]) -> None:
    """Run `main`; a `UserError` becomes its one line on standard error and exit code 2, as does a disk that refuses.

    Ctrl-C gives exit code 130, a closed pipe 141. SIGTERM ends it as an exception would, so that nothing half-written
    stays behind.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at the end
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {error.filename or 'the disk'}: {error.strerror}; make room or allow writing", file=sys.stderr)
        sys.exit(2)
