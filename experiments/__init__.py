"""Programs for single runs."""

from mnist_jax.cli.signals import end_during_imports

end_during_imports()
