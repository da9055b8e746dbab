# SPDX-License-Identifier: Apache-2.0
"""Processes that have imported torch and Hesse, and nothing else, at the cost of one."""

import json
import subprocess
import sys

_SERVER = """
import json, os, sys, tempfile, torch, hesse

for line in sys.stdin:
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        if (child := os.fork()) == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            exec(json.loads(line), {"__name__": "__main__"})
            sys.exit()
        _, status = os.waitpid(child, 0)
        answer = [os.waitstatus_to_exitcode(status)]
        for file in (output, errors):
            file.seek(0)
            answer.append(file.read().decode())
    print(json.dumps(answer), flush=True)
"""


class FreshProcess:
    """A process that forks itself for each script."""

    def __init__(self):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen([sys.executable, "-c", _SERVER], text=True, **pipes)

    def run(self, script):
        """As `subprocess.run` of a new Python with this script."""
        self._process.stdin.write(json.dumps(script) + "\n")
        self._process.stdin.flush()
        return subprocess.CompletedProcess(script, *json.loads(self._process.stdout.readline()))

    def close(self):
        """End the process."""
        self._process.communicate()
