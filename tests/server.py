"A real server on loopback."
import json
import re
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
from conftest import COMMAND


class Server:
    "The command `serve`, its output, and a client."

    def __init__(self, folder, *arguments):
        command = [COMMAND, 'serve', str(folder), '--port', '0', *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.log, self.said = [], []
        self.readers = [threading.Thread(target=lambda f=f, o=o: o.extend(f), daemon=True) for f, o in (
            (self.process.stdout, self.log), (self.process.stderr, self.said))]
        for o in self.readers: o.start()
        self.url = self._until(lambda: (re.findall(r'http://\S+', ''.join(self.said)) or [None])[0])
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def _until(self, condition):
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            if result := condition(): return result
            time.sleep(.02)
        raise AssertionError(''.join(self.said))

    def lines(self, n):
        "The first `n` lines of the log; waits for them."
        self._until(lambda: len(self.log) >= n)
        return [json.loads(o) for o in self.log]

    def children(self):
        "Ids of the worker processes."
        threads = Path(f'/proc/{self.process.pid}/task').glob('*/children')
        return sorted(int(o) for file in threads for o in file.read_text().split())

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        for o in self.readers: o.join()
        return code


@contextmanager
def serving(folder, *arguments):
    server = Server(folder, *arguments)
    try: yield server
    finally:
        if server.process.poll() is None: server.process.kill()
        server.process.wait()
        server.client.close()
