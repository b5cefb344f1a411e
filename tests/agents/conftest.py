"""Tests of agents run in one thread, as training does."""

import torch

torch.set_num_threads(1)
