"""Keeping compiled programs between runs."""

import jax

from smalti.settings import settings


def use_compilation_cache() -> None:
    """Lets JAX keep compiled programs in the folder that the settings name; call it before anything is compiled.

    An empty `SMALTI_COMPILATION_CACHE` disables the cache.
    """
    folder = settings().compilation_cache
    if folder is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # By default JAX skips programs that compile within a second, but startup consists of many of those.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
