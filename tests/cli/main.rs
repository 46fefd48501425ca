//! The command `forebay`, run as a process: what it prints, how it ends, what it leaves behind.

mod convert;
