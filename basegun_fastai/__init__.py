"Turn two folders of photos into a firearm classifier that can be trusted, explained and served."
import os
from importlib.metadata import version

__version__ = version('basegun-fastai')

# before onnxruntime is imported: since 1.29 it tells its maker what it opens (microsoft/onnxruntime#27379)
os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')
