"Every name can be written, with accents if a font has them, and no two names look the same."
import subprocess
import sys

from basegun_fastai.trust.captions import caption_font, fit_text, legible

# on a server without Matplotlib
WITHOUT = '''
import sys
sys.modules['matplotlib'] = None
import importlib.util
plain = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == 'matplotlib' else plain(name, *more)
from basegun_fastai.trust.captions import legible
print(ascii(legible('épaule')))
'''


def test_any_name_can_be_written():
    assert legible('épaule à pompe') == 'épaule à pompe' == legible('e\u0301paule a\u0300 pompe')
    assert legible('銃') == '\\u9283' and legible('\udce9\n') == '\\udce9\\n'


def test_a_server_without_matplotlib_writes_escapes():
    result = subprocess.run([sys.executable, '-c', WITHOUT], capture_output=True, text=True)
    assert result.stdout.strip() == ascii('\\xe9paule'), result


def test_a_long_name_keeps_its_beginning_and_its_end():
    font = caption_font(16)
    short = fit_text('a' * 100 + 'z' * 100, font, 120)
    assert short[0] == 'a' and short[-1] == 'z' and '…' in short and font.getlength(short) <= 120
