// sampling: to come.
