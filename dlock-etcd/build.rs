//! Says in plain words that `protoc` is missing, before the build script of `etcd-client` panics over it.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-env-changed=PROTOC");
    println!("cargo::rerun-if-env-changed=PATH");
    if let Some(protoc) = env::var_os("PROTOC") {
        if !Path::new(&protoc).exists() {
            println!(
                "cargo::error=PROTOC is set to {}, which does not exist: unset it, or set it to the path of protoc",
                protoc.display()
            );
        }
        return;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = env::split_paths(&path).any(|folder| ["protoc", "protoc.exe"].iter().any(|name| folder.join(name).is_file()));
    if !is_there {
        println!(
            "cargo::error=dlock-etcd needs protoc, the protocol buffers compiler, to build: install it (Debian and Ubuntu: apt-get install \
             protobuf-compiler libprotobuf-dev; Fedora: dnf install protobuf-compiler; macOS: brew install protobuf), or set PROTOC to its path"
        );
    }
}
