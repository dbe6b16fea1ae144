"One update for all layers, equal to fastai's."
import torch
from fastai.optimizer import Adam
from torch import nn

from basegun_fastai.model.optimiser import AdamW


def test_many_steps_with_changing_rates_end_where_those_of_fastai_do():
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    opts = [make([[*o[0].parameters()], [*o[2].parameters()]], lr=.01)
            for make, o in zip((Adam, AdamW), models, strict=True)]
    for i in range(40):
        x = torch.randn(8, 6, dtype=torch.double)
        for opt, model in zip(opts, models, strict=True):
            opt.freeze_to(1 if i < 10 else 0)
            opt.set_hypers(lr=[.001 * (i + 1), .01], mom=.95 - .002 * i, wd=.1)
            model(x).square().mean().backward()
            opt.step()
            opt.zero_grad()
    for a, b in zip(*(o.parameters() for o in models), strict=True): assert torch.allclose(a, b, atol=1e-9)
