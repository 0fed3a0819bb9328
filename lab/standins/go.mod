module nephoran.com/maintenance/lab/standins

go 1.26.0
