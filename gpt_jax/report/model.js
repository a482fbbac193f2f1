// model: to come.
