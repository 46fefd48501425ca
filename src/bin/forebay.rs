//! The command `forebay`: passes arguments in and returns the exit code.

fn main() -> std::process::ExitCode {
    forebay::cli::main()
}
