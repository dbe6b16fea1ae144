"Pages in headless Chromium: their final HTML and their width."
import html
import re
import shutil
import subprocess

import pytest


def browsed(url, tmp_path, width=1200):
    "Open a page in headless Chromium, and return its final HTML."
    chromium = shutil.which('chromium')
    if not chromium: pytest.skip('no chromium: apt-get install chromium')
    flags = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
             '--disable-component-update --disable-sync --virtual-time-budget=5000').split()
    return subprocess.run([chromium, *flags, f'--user-data-dir={tmp_path}/browser', f'--window-size={width},900',
                           '--dump-dom', url], capture_output=True, text=True, timeout=120).stdout


def measured(page, tmp_path, windows, expression):
    "The words that a script has for a page in windows of some widths; the script gets `frame`."
    inside = html.escape(page.read_text(errors='replace'))
    frames = ''.join(f'<iframe width="{o}" height="800" style="border:0" srcdoc="{inside}"></iframe>' for o in windows)
    (tmp_path/'frames.html').write_text(
        f'''{frames}<p id="wide"></p><script>
        const wide = document.querySelector('#wide');
        const measure = frame => {expression};
        onload = () => wide.textContent = [...document.querySelectorAll('iframe')].map(measure).join(' ')</script>''')
    shown = browsed((tmp_path/'frames.html').as_uri(), tmp_path, 1400)
    return re.findall(r'<p id="wide">([^<]*)</p>', shown)[-1].split()


def widths_of(page, tmp_path, *windows):
    "Width of a page in pixels, in windows of some widths."
    return [int(o) for o in measured(page, tmp_path, windows, 'frame.contentDocument.documentElement.scrollWidth')]


def tables_of(page, tmp_path, window):
    "Hidden pixels of each table with an id, in a window of some width."
    shown = measured(page, tmp_path, [window], """[...frame.contentDocument.querySelectorAll('.scroll table')].map(
        o => `${o.id}:${o.parentElement.scrollWidth - o.parentElement.clientWidth}`).join(' ')""")
    return {key: int(n) for key, n in (o.split(':') for o in shown)}
