"""How many inputs each fuzzer tries: `make fuzz CASES=10000`."""


def pytest_addoption(parser):
    parser.addoption("--cases", type=int, default=300, help="inputs for each fuzzer")
