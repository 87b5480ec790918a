//! How large an image will be.

use super::create::CreateOptions;

/// File sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measure {
    /// With the data that there is.
    pub required: u64,
    /// With data in every cluster.
    pub fully_allocated: u64,
}

/// Measures an image with these options, of whose clusters `data_clusters` hold data.
pub fn measure(options: &CreateOptions, data_clusters: u64) -> Measure {
    let cluster_size = options.cluster_size();
    let clusters = options.size.div_ceil(cluster_size);
    let tables = clusters.div_ceil(cluster_size / 8);
    let l1 = (tables * 8).div_ceil(cluster_size);
    // Header, L1 table, L2 tables and data; and what their refcounts need, which are clusters with refcounts themselves.
    let described = 1 + l1 + tables + clusters;
    let (mut blocks, mut table) = (1, 1);
    loop {
        let needed = (described + blocks + table).div_ceil(options.clusters_per_block());
        let needed_table = (needed * 8).div_ceil(cluster_size);
        if (needed, needed_table) == (blocks, table) {
            break;
        }
        (blocks, table) = (needed.max(blocks), needed_table.max(table));
    }
    let fully_allocated = (described + blocks + table) * cluster_size;
    Measure {
        required: fully_allocated - clusters.saturating_sub(data_clusters) * cluster_size,
        fully_allocated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_disk_of_a_gibibyte_needs_six_clusters() {
        let measured = measure(&CreateOptions::new(1 << 30), 0);
        assert_eq!((measured.required, measured.fully_allocated), (393_216, 1_074_135_040));
    }
}
