"""Any `gates.Suite` under pytest: collected, ordered, blocked, shared among workers and reported."""
