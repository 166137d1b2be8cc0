fn main() -> std::process::ExitCode {
    use clap::Parser;
    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Sub,
    }
    #[derive(clap::Subcommand)]
    enum Sub {
        Demo(adit::demo::Args),
    }
    match Cli::parse().command {
        Sub::Demo(args) => adit::demo::run(args),
    }
}
