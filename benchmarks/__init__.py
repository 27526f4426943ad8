"""Programs that measure and compare."""

from mnist_jax.cli.signals import end_during_imports

end_during_imports()
