"""Exit codes, by which a scheduler decides whether to start the job again.

The numbers are those of sysexits.h. A process that a signal ended (negative in Python, 128 + signal
in a shell; 134 where jax gives up because another host died) is worth another start too.
"""

ERROR = 1  # something in the code, the config or the data: the next start would end alike
LOST = 69  # EX_UNAVAILABLE: another host is gone, or never came
HUNG = 70  # EX_SOFTWARE: no progress for `hang_timeout` seconds
PREEMPTED = 75  # EX_TEMPFAIL: SIGTERM; the state is saved
INTERRUPTED = 130  # as a shell has it for SIGINT: Ctrl-C; the state is saved, and nobody waits

START_AGAIN = (LOST, HUNG, PREEMPTED)
