"Pass the package's metadata, which only settings.ini holds, to setuptools."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], author=cfg['author'],
    url=cfg['git_url'], license={'apache2': 'Apache-2.0'}[cfg['license']], keywords=cfg['keywords'].split(),
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=[cfg['lib_path'], f"{cfg['lib_path']}.*"]), zip_safe=False,
    package_data={cfg['lib_path']: ['templates/*']},
    install_requires=cfg['requirements'].split(), python_requires='>='+cfg['min_python'],
    extras_require={k: cfg[f'{k}_requirements'].split() for k in ('notebook', 'serve', 'dev')},
    entry_points={'console_scripts': cfg['console_scripts'].split(),
                  'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]})
