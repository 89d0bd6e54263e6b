"""One file per operator, each with its ``CASE``: whatever lies here is held to the contract, ``test_contract_*.py``."""
