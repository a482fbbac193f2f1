// views: to come.
