//! The command `forebay`: arguments in, exit code out.

fn main() -> std::process::ExitCode {
    forebay::cli::main()
}
