// Charts: to come.
