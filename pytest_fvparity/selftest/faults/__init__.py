"""The faults, a module a check key; each function plants one."""
