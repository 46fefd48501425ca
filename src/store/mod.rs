//! Stores: URLs, patterns, exact range reads with retries, over `object_store` and local files.
