"""What lies on disk: files that are whole or absent, the cache of finished work, where numbers come
from.
"""
