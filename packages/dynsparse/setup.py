"""The compiled kernel, an optional extension: where there is no compiler, the wheel is built without it."""

from setuptools import Extension, setup

KERNEL = Extension(
    "dynsparse._kernel",
    ["native/kernel.c"],
    depends=["native/rows.h"],
    libraries=["m"],
    extra_compile_args=["-O3"],
    py_limited_api=True,
    optional=True,
)

setup(ext_modules=[KERNEL], options={"bdist_wheel": {"py_limited_api": "cp311"}})
