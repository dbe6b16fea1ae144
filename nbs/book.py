"""The book as HTML pages: `python nbs/book.py _docs` makes them, and lists dead links.

nbconvert converts each notebook to HTML; this file adds the frame of the pages and the links between them.
"""
import json
import re
import shutil
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

NBS = Path(__file__).parent
STYLE = """
:root { color-scheme: light dark; --soft: #8883; --link: light-dark(#2458a6, #8ab4f0) }
* { box-sizing: border-box }
body { font: 17px/1.55 system-ui, sans-serif; margin: 0 auto; max-width: 74rem; padding: 1rem;
  overflow-wrap: break-word }
a { color: var(--link) }
header { border-bottom: 1px solid var(--soft); display: flex; flex-wrap: wrap; gap: .3rem 1.2rem;
  padding-bottom: .6rem }
main { max-width: 56rem }
h1 { margin-bottom: .3rem } h2 { margin-top: 2.4rem }
blockquote { border-left: 3px solid var(--soft); margin: 0 0 1.2rem; padding-left: 1rem }
pre { font: 14px/1.5 ui-monospace, monospace; margin: 0; overflow-x: auto }
code { font: .88em ui-monospace, monospace }
table { border-collapse: collapse; display: block; overflow-x: auto }
td, th { border-bottom: 1px solid var(--soft); padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top }
img { max-width: 100%; height: auto }
.prompt, .anchor-link { display: none }
.code_cell { margin: 1rem 0 }
.input .highlight { background: var(--soft); border-left: 4px solid transparent; border-radius: .3rem;
  padding: .6rem .9rem }
.output { padding: .4rem 1.1rem }
footer { border-top: 1px solid var(--soft); margin-top: 3rem; padding-top: .6rem }
"""


def notebooks():
    "Paths below `nbs`, in the order of the index."
    text = ''.join(''.join(o['source']) for o in json.loads((NBS/'index.ipynb').read_text())['cells'])
    return ['index.ipynb', *re.findall(r'\]\(([\w/-]+\.ipynb)\)', text)]


def title(name):
    first = next(o for o in json.loads((NBS/name).read_text())['cells'] if o['cell_type'] == 'markdown')
    return ''.join(first['source']).split('\n')[0].removeprefix('# ')


def link(name, text, root): return f'<a href="{root}{name.replace(".ipynb", ".html")}">{escape(text)}</a>'


def read(name):
    "A notebook without the lines that only nbdev reads, and the ids of the exported cells."
    notebook = nbformat.read(NBS/name, 4)
    exported = [o.id for o in notebook.cells if o.source.startswith('#| export')]
    notebook.cells = [o for o in notebook.cells if not o.source.startswith('#| default_exp')]
    for o in notebook.cells: o.source = o.source.removeprefix('#| export\n')
    return notebook, exported


def to_pages(html):
    "Turn links to notebooks into links to their pages; HTML that a page shows as text does not change."
    return re.sub(r'(<a [^<>]*href="[^":<>]*)\.ipynb(["#])', r'\1.html\2', html)


def page(name, order, exporter):
    "A notebook as a page, with links to the pages before and after it."
    root, at = '../' * name.count('/'), order.index(name)
    notebook, exported = read(name)
    body = to_pages(exporter.from_notebook_node(notebook)[0])
    marks = ', '.join(f'[id="cell-id={o}"] .input .highlight' for o in exported)
    marked = f'{marks} {{ border-left-color: var(--link) }}' if exported else ''
    near = [f'{word}: {link(order[i], title(order[i]), root)}' for word, i in (('previous', at - 1), ('next', at + 1))
            if 0 <= i < len(order)]
    light, dark = (HtmlFormatter(style=o).get_style_defs('.highlight') for o in ('default', 'monokai'))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title(name))} · basegun-fastai</title>
<style>{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n{STYLE}{marked}</style></head><body>
<header>{link('index.ipynb', 'basegun-fastai', root)} {' '.join(f'<span>{o}</span>' for o in near)}</header>
<main>{body}</main><footer>{' · '.join(near)}</footer></body></html>
"""


class Links(HTMLParser):
    "The links of a page, and its anchors."

    def __init__(self, html):
        super().__init__()
        self.targets, self.anchors = [], set()
        self.feed(html)

    def handle_starttag(self, _, attrs):
        self.targets += [value for name, value in attrs if name in ('href', 'src', 'xlink:href') and value]
        self.anchors |= {value for name, value in attrs if name == 'id'}


def dead_links(out):
    "Links between the pages whose page or anchor does not exist."
    pages = {o: Links(o.read_text()) for o in out.rglob('*.html')}
    for file, links in pages.items():
        for target in links.targets:
            if re.match(r'[a-z]+:', target): continue
            path, _, anchor = target.partition('#')
            place = (file.parent/path).resolve() if path else file.resolve()
            if not place.exists() or anchor and place in pages and anchor not in pages[place].anchors:
                yield f'{file}: {target}'


def main(out):
    order, exporter = notebooks(), HTMLExporter(template_name='basic', embed_images=True)
    exporter.register_filter('clean_html', lambda o: o)  # for untrusted notebooks; it takes a third of the time
    for name in order:
        target = out/name.replace('.ipynb', '.html')
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page(name, order, exporter))
    shutil.copytree(NBS/'images', out/'images', dirs_exist_ok=True)
    dead = [*dead_links(out.resolve())]
    print(*dead, f'{len(order)} pages: {out/"index.html"}', sep='\n')
    return bool(dead)


if __name__ == '__main__': sys.exit(main(Path(sys.argv[1])))
