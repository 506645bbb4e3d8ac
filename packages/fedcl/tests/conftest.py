"""What every test module needs."""


def pytest_configure(config):
    # flwr 1.42 imports typer 0.20, which imports names that click 8.5 calls deprecated.
    config.addinivalue_line(
        "filterwarnings", r"ignore:'click\.utils\.\w+' is deprecated and will be removed:DeprecationWarning:typer"
    )
