//! statedb
