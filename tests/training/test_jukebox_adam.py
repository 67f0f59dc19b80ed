"""Jukebox's Adam, against its formula in float64."""

import math

import torch

from megajukebox.training.engines.jukebox_adam import JukeboxAdam


def test_steps_follow_the_formula_with_scaled_decay_and_plain_epsilon():
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(5))
    optimiser = JukeboxAdam([p], lr=0.1, betas=(0.9, 0.99), eps=1e-3, weight_decay=0.05)
    x, m, v = p.detach().double(), torch.zeros(5).double(), torch.zeros(5).double()
    for t in range(1, 6):
        g = torch.randn(5)
        p.grad = g.clone()
        optimiser.step()
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g.double() ** 2
        rate = 0.1 * math.sqrt(1 - 0.99**t) / (1 - 0.9**t)
        x = x - rate * (m / (v.sqrt() + 1e-3) + 0.05 * x)
        torch.testing.assert_close(p.detach().double(), x, rtol=1e-5, atol=1e-6)


def test_a_parameter_without_gradient_stays_and_a_resumed_optimiser_goes_on_the_same():
    def make():
        torch.manual_seed(0)
        return [torch.nn.Parameter(torch.randn(3)), torch.nn.Parameter(torch.randn(2))]

    def step(optimiser, parameters, n):
        parameters[0].grad = torch.full((3,), float(n))
        optimiser.step()

    straight, resumed = make(), make()
    one, two = JukeboxAdam(straight, weight_decay=0.1), JukeboxAdam(resumed, weight_decay=0.1)
    for n in range(1, 5):
        step(one, straight, n)
        step(two, resumed, n)
        state = two.state_dict()
        two = JukeboxAdam(resumed, weight_decay=0.1)
        two.load_state_dict(state)
    assert torch.equal(straight[0], resumed[0]) and torch.equal(straight[1], make()[1])
