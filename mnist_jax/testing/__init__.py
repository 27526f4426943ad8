"""Checks of networks and of step functions, for pytest or by themselves.

`check_model` runs `CHECKS` on a network and `check_step` runs `STEP_CHECKS` on a step
function. Every failure is an AssertionError of one sentence, also under `python -O`.
"""

from mnist_jax.testing.networks import CHECKS as CHECKS
from mnist_jax.testing.networks import check_model as check_model
from mnist_jax.testing.steps import STEP_CHECKS as STEP_CHECKS
from mnist_jax.testing.steps import Batch as Batch
from mnist_jax.testing.steps import check_step as check_step
from mnist_jax.testing.steps import make_batch as make_batch
from mnist_jax.testing.trees import assert_trees_close as assert_trees_close
from mnist_jax.testing.trees import no_compiling as no_compiling
from mnist_jax.testing.trees import no_transfers as no_transfers
