//! The command as processes see it: what it prints, where, and how it ends. A file a subcommand.

mod bench;
mod convert;
mod explain;
mod formats;
mod head;
mod index;
mod inspect;
mod ledger;
mod replay;
mod support;
mod terminal;
mod verify;
