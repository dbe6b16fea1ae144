"Turn two folders of photos into a firearm classifier that can be trusted, explained and served."
from importlib.metadata import version

__version__ = version('basegun-fastai')
