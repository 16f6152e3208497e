"""Packaging: the wheel carries configs and tools in `vvq_mm/.mim`, where OpenMMLab's tools look for them."""
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / 'README.md'
DEPLOY = ['onnx>=1.20', 'onnxscript>=0.7', 'onnxruntime>=1.24', 'openvino>=2026.0']

setup(
    name='vvq_mm',
    version=re.search(r"__version__ = '(.+)'", (HERE / 'vvq_mm' / 'version.py').read_text()).group(1),
    description='Quantisation-aware training of 4-, 3- and 2-bit vision transformers for MMEngine and MMPretrain',
    long_description=README.read_text(encoding='utf-8') if README.exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['vvq_mm', 'vvq_mm.*']),
    # `.mim/configs`, `.mim/tools` and `configs` are links to the folders of the repository; a wheel holds their files
    package_data={'vvq_mm': ['.mim/*.yml', '.mim/configs/**/*', '.mim/tools/**/*', 'configs/**/*']},
    exclude_package_data={'': ['*.pyc', '**/__pycache__/*']},
    install_requires=[
        'torch>=2.6',
        'torchvision',
        'mmengine>=0.10.7,<1.0',
        'mmpretrain>=1.2.0,<2.0',
        'timm>=1.0',
        'numpy',
        'safetensors>=0.5',
        'matplotlib',
        'pyyaml',
        'scikit-learn',
        'scipy',
        'rich',
        'tqdm',
        'setuptools<82',  # mmengine resolves `mmpretrain::` bases through pkg_resources, which setuptools 82 removed
    ],
    # No mmcv here: who has the full one must not get mmcv-lite over it. mmpretrain needs one of the two.
    extras_require={
        'lite': ['mmcv-lite>=2.0.0,<2.4.0'],
        'bench': ['torchao', 'brevitas'],
        'deploy': DEPLOY,
        'tests': ['pytest>=7', 'pytest-xdist', 'hypothesis', 'tensorboard', *DEPLOY],
    },
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
    ],
)
