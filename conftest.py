"""Fixtures of tests/conftest.py, for the tests of the plugins too."""

pytest_plugins = ["conftest_shared", "covered_rows"]
