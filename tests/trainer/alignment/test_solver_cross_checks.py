"""Independent solvers of the same problem: they agree with ours on what a matching costs, and find none cheaper."""

import pytest
import torch

from logramed.trainer.alignment import match_graphs, matching_cost
from tests.trainer.alignment.test_matching import random_problem


def quadratic_terms(problem):
    """Of each two pairs ((i, j), (k, m)) that edges couple the cost of both at once, every two pairs named once."""
    _, edge_costs, source, target = problem
    terms = {}
    for a, (i, k) in enumerate(source.T.tolist()):
        for b, (j, m) in enumerate(target.T.tolist()):
            key = tuple(sorted([(i, j), (k, m)]))
            terms[key] = terms.get(key, 0.0) + edge_costs[a, b].item()
    return terms


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of its ipfp, once converged
@pytest.mark.parametrize("solver", ["rrwm", "ipfp", "sm"])
@pytest.mark.parametrize("num_nodes", [8, 12])
def test_pygmtools_agrees_on_costs_and_finds_none_cheaper(solver, num_nodes):
    pygmtools = pytest.importorskip("pygmtools")
    problem = random_problem(num_nodes, 3 * num_nodes)
    # Its affinities are to be maximized; the pair (i, j) is entry j * num_nodes + i.
    affinity = torch.diag(-problem[0].double().T.flatten())
    for ((i, j), (k, m)), cost in quadratic_terms(problem).items():
        first, second = j * num_nodes + i, m * num_nodes + k
        affinity[first, second] -= cost / 2
        affinity[second, first] -= cost / 2
    # It expects affinities of at least 0. Every matching gains num_nodes^2 times what is added to each.
    shift = -affinity.min()
    solve = getattr(pygmtools, solver)
    soft = solve((affinity + shift).numpy(), num_nodes, num_nodes, backend="numpy")
    theirs = torch.from_numpy(pygmtools.hungarian(soft, backend="numpy")).double()
    entries = theirs.T.flatten()
    cost = matching_cost(theirs.argmax(1), *problem).item()
    assert -(entries @ (affinity + shift) @ entries).item() + num_nodes**2 * shift.item() == pytest.approx(
        cost, abs=1e-4
    )
    assert matching_cost(match_graphs(*problem, num_starts=64), *problem).item() <= cost + 1e-5


@pytest.mark.parametrize("num_nodes", [12, 16])
def test_libmgm_agrees_on_costs_and_finds_none_cheaper(num_nodes):
    pylibmgm = pytest.importorskip("pylibmgm")
    problem = random_problem(num_nodes, 4 * num_nodes)
    model = pylibmgm.GmModel(pylibmgm.Graph(0, num_nodes), pylibmgm.Graph(1, num_nodes))
    for i in range(num_nodes):
        for j in range(num_nodes):
            model.add_assignment(i, j, problem[0][i, j].item())
    for (first, second), cost in quadratic_terms(problem).items():
        if first[0] != second[0] and first[1] != second[1]:
            model.add_edge(*first, *second, cost)
    solution = pylibmgm.solver.solve_gm(model)
    theirs = torch.tensor([-1 if label is None else label for label in solution.to_list_with_none()])
    cost = matching_cost(theirs, *problem).item()
    assert solution.evaluate() == pytest.approx(cost, abs=1e-4)
    # It may leave nodes unmatched at cost 0.
    assert matching_cost(match_graphs(*problem, allow_unmatched=True, num_starts=64), *problem).item() <= cost + 1e-5
