"""Train without augmentation, so that several processes and one see the same photos; arguments as `train` takes them.
`torchrun` starts it several times; without it, this is one process.
"""
import sys

from fastai.vision.augment import setup_aug_tfms

from basegun_fastai import cli
from basegun_fastai.model import loaders
from basegun_fastai.model.augment import Reframe

loaders.augmentation = lambda size, *_: setup_aug_tfms([Reframe(size, p_affine=0.)])

if __name__ == '__main__':
    sys.argv[0] = 'basegun-fastai'
    cli.main()
