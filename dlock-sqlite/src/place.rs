//! Where a file of locks can live: on a file system of this host, in a folder that can be written.

use std::path::Path;

use crate::file::OpenError;

/// Refuses a folder in which no locks can be kept.
pub(crate) fn check_folder(folder: &Path) -> Result<(), OpenError> {
    let file_system =
        rustix::fs::statfs(folder).map_err(|source| OpenError::Unreadable { path: folder.into(), source: source.into() })?;
    if let Some(kind) = network(kind_of(&file_system)) {
        return Err(OpenError::NetworkFileSystem { path: folder.into(), kind });
    }
    let metadata = std::fs::metadata(folder).map_err(|source| OpenError::Unreadable { path: folder.into(), source })?;
    if metadata.permissions().readonly() {
        return Err(OpenError::ReadOnlyFolder { path: folder.into(), source: None });
    }
    Ok(())
}

/// The kind by its magic number, of which only the low 32 bits are used.
#[allow(clippy::cast_lossless, clippy::unnecessary_cast)] // its type differs between architectures
fn kind_of(file_system: &rustix::fs::StatFs) -> u32 {
    (file_system.f_type as i64 & 0xFFFF_FFFF) as u32
}

/// What a file system is called whose files another host, or a server in between, may change; `None` for one of this host.
///
/// The numbers are those of statfs(2) and of the kernel's `magic.h`. All of FUSE counts, since sshfs and the like cannot be told from the rest.
fn network(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x0000_6969 => "NFS",
        0x0000_517B => "SMB",
        0xFF53_4D42 => "CIFS",
        0xFE53_4D42 => "SMB2",
        0x6573_5546 => "FUSE",
        0x0102_1997 => "9p",
        0x00C3_6400 => "Ceph",
        0x5346_414F | 0x6B41_4653 => "AFS",
        0x7375_7245 => "Coda",
        0x0000_564C => "NCP",
        0x0BD0_0BD0 => "Lustre",
        0x4750_4653 => "GPFS",
        0x0116_1970 => "GFS2",
        0x7461_636F => "OCFS2",
        0x1983_0326 => "BeeGFS",
        0x2003_0528 => "OrangeFS",
        0x786F_4256 => "a shared folder of VirtualBox",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_by_their_magic_numbers() {
        for (magic, kind) in
            [(0x6969, "NFS"), (0xFF53_4D42, "CIFS"), (0xFE53_4D42, "SMB2"), (0x6573_5546, "FUSE"), (0x0102_1997, "9p")]
        {
            assert_eq!(network(magic), Some(kind));
        }
    }

    #[test]
    fn file_systems_of_this_host_are_taken() {
        // ext4, xfs, btrfs, tmpfs, overlayfs, zfs, f2fs, exfat.
        for magic in [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0x794C_7630, 0x2FC1_2FC1, 0xF2F5_2010, 0x2011_BAB0] {
            assert_eq!(network(magic), None, "{magic:#x}");
        }
    }

    #[test]
    fn a_network_file_system_is_refused_with_what_would_be_right() {
        let error = OpenError::NetworkFileSystem { path: "/mnt/locks".into(), kind: "NFS" }.to_string();
        assert!(error.contains("/mnt/locks") && error.contains("NFS") && error.contains("disk of this host"), "{error}");
    }
}
