//! Single rules of the engine.
