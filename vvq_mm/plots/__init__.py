"""Pictures as PNG files; drawn without a display and without touching pyplot's global state."""
from .oscillation import plot_latent_histograms, plot_oscillation

__all__ = ['plot_latent_histograms', 'plot_oscillation']
