"""What an architecture costs: counted, timed, summed in tables, and searched under limits."""
