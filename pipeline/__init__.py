"""What makes a good ELBO? Burda et al. (2016) and Rainforth et al. (2018), rerun end to end.

The library behind the DVC stages: it knows neither DVC nor the command line.
"""
