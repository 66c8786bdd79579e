"""Keeping compiled programs from one start to the next."""

import jax

from smalti.settings import settings


def use_compilation_cache() -> None:
    """Lets JAX keep compiled programs in the folder of the settings; to be called before anything is compiled.

    An empty `SMALTI_COMPILATION_CACHE` keeps none.
    """
    folder = settings().compilation_cache
    if folder is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # The default leaves out what compiles within a second; a start is made of many of those.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
